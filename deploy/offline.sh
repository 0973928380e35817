#!/usr/bin/env bash
# Makes a machine without a network able to run woodfrog, from what deploy/bundle.sh packed. About half a minute.
# Usage: . deploy/offline.sh FOLDER [PYTHON]     (as root, in the repository; PYTHON has PyTorch with CUDA)
# Sourced, because it sets variables: WOODFROG_TOOLS, PYTHONPATH, and PYTHON for `$PYTHON -m woodfrog.cli`.
BUNDLE=$(cd "$1" && pwd)
PYTHON=${2:-python3}
OFFLINE=/opt/woodfrog
if [ ! -e "$OFFLINE/done" ]; then
  mkdir -p "$OFFLINE/tools" "$OFFLINE/fuse"
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade "$BUNDLE"/wheels/*.whl 2>&1 |
    grep -vi warning || true
  # Never into /: libraries of another release would break the system's own loader.
  for deb in "$BUNDLE"/debs/*.deb; do dpkg -x "$deb" "$OFFLINE/fuse"; done
  library=$(find "$OFFLINE/fuse" -name 'libfuse3.so.3.*' | head -n 1)
  folder=$(dirname "$(find "$OFFLINE/fuse" -name libfuse3.so | head -n 1)")
  ln -sf "$library" "$folder/libfuse3.so"
  ln -sf "$library" "$folder/libfuse3.so.3"
  pc=$(find "$OFFLINE/fuse" -name fuse3.pc | head -n 1)
  sed -i "s#^prefix=.*#prefix=$OFFLINE/fuse/usr#; s#^libdir=.*#libdir=$folder#; s#^includedir=.*#includedir=$OFFLINE/fuse/usr/include#" "$pc"
  PKG_CONFIG_PATH=$(dirname "$pc") LDFLAGS="-Wl,-rpath,$folder" "$PYTHON" -m pip install -q --no-index --no-deps \
    --no-build-isolation --no-cache-dir "$BUNDLE"/source/pyfuse3-*.tar.gz 2>&1 | grep -vi warning || true
  "$PYTHON" -W ignore -m tarfile -e "$BUNDLE/tools.tar.xz" "$OFFLINE/tools"  # of Python, since xz may be missing
  cat >"$OFFLINE/tools/criu.sh" <<END
#!/bin/sh
exec $OFFLINE/tools/criu/usr/lib64/ld-linux-x86-64.so.2 --library-path $OFFLINE/tools/criu/usr/lib/x86_64-linux-gnu $OFFLINE/tools/criu/usr/sbin/criu "\$@"
END
  chmod 755 "$OFFLINE/tools/criu.sh" "$OFFLINE/tools/etcd/usr/bin/etcd"
  touch "$OFFLINE/done"
fi
tar xzf "$BUNDLE/api.tgz"
WOODFROG_COMMIT=$(cat "$BUNDLE/commit")  # of what was packed
export WOODFROG_TOOLS=$OFFLINE/tools PYTHONPATH=$PWD/libs:$PWD/services:$PWD PYTHON HF_HUB_OFFLINE=1 WOODFROG_COMMIT
