from pathlib import Path

from woodfrog.node_agent.gpus import device_files

INFORMATION = """Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 42
GPU UUID: \t {uuid}
Video BIOS: \t 96.00.89.00.01
Bus Type: \t PCIe
Device Minor: \t {minor}
GPU Excluded:\t No
"""


def test_the_driver_tells_which_file_is_which_gpu(tmp_path: Path) -> None:
    for slot, uuid, minor in (("0000:04:00.0", "GPU-b", 1), ("0000:84:00.0", "GPU-a", 0)):
        (tmp_path / "gpus" / slot).mkdir(parents=True)
        text = INFORMATION.format(uuid=uuid, minor=minor)
        (tmp_path / "gpus" / slot / "information").write_text(text)
    (tmp_path / "gpus" / "0000:c4:00.0").mkdir()
    (tmp_path / "gpus" / "0000:c4:00.0" / "information").write_text("Model: unknown\n")
    found = {"GPU-a": Path("/dev/nvidia0"), "GPU-b": Path("/dev/nvidia1")}
    assert device_files(tmp_path) == found


def test_a_machine_without_the_driver_has_none(tmp_path: Path) -> None:
    assert device_files(tmp_path) == {}
