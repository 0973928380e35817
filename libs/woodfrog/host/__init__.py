"""This machine's cgroups, mounts and folders, for those who make and clean them."""
