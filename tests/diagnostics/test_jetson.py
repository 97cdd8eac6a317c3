"""Fake Jetson: JetPack and power-mode lines from the texts that its files and tools give.

The texts are those of real devices: the release file and `nvpmodel -q` of an Orin, `jetson_clocks --show`
before and after the clocks are fixed.
"""

from __future__ import annotations

import pytest

from edge_asr.diagnostics.jetson import check_jetson, l4t_release


def test_a_pc_has_no_jetson_lines(fake_machine) -> None:
    machine = fake_machine()
    assert not machine.is_jetson
    assert check_jetson(machine) == []


def test_fake_jetson_lines(fake_jetson) -> None:
    jetpack, power = check_jetson(fake_jetson())
    assert (jetpack.name, jetpack.status, jetpack.fix) == ("JetPack", "ok", "")
    assert jetpack.detail == "JetPack 6.2+b77, L4T R36.4.3, NVIDIA Jetson Orin Nano Developer Kit"
    assert (power.name, power.status) == ("power mode", "ok")
    assert power.detail.startswith("MAXN_SUPER (mode 2); clocks are shown to root only")


@pytest.mark.parametrize(
    ("low", "current", "expected"),
    [
        (306000000, 306000000, "GPU clock 306 to 918 MHz, now 306 (sudo jetson_clocks fixes it at its top)"),
        (918000000, 918000000, "GPU clock fixed at 918 MHz"),
    ],
)
def test_fake_jetson_clocks_as_root(fake_jetson, low: int, current: int, expected: str) -> None:
    shown = f"GPU MinFreq={low} MaxFreq=918000000 CurrentFreq={current}\nEMC MinFreq=204000000"
    _, power = check_jetson(fake_jetson(programs={"jetson_clocks": f"[ $1 = --show ] && echo '{shown}'"}))
    assert power.detail.endswith(expected)


def test_fake_jetson_without_the_jetpack_packages_or_nvpmodel(fake_jetson) -> None:
    broken = {"dpkg-query": "exit 1", "nvpmodel": "exit 1"}
    jetpack, power = check_jetson(fake_jetson(programs=broken))
    assert jetpack.status == "ok"  # TensorRT's own line says what is missing
    assert "nvidia-jetpack not installed" in jetpack.detail
    assert (power.status, power.fix) == ("missing", "sudo nvpmodel -q")


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("36 (release), REVISION: 3.0", "R36.3.0"),
        ("38 (release), REVISION: 2.2", "R38.2.2"),
        ("39 (release), REVISION: 2.1", "R39.2.1"),
    ],
)
def test_l4t_release_of_jetpack_6_and_7(fake_jetson, release: str, expected: str) -> None:
    machine = fake_jetson(release)
    assert l4t_release(machine) == expected
    assert check_jetson(machine)[0].status == "ok"


def test_fake_jetson_with_jetpack_5_is_broken(fake_jetson) -> None:
    jetpack, _ = check_jetson(fake_jetson("35 (release), REVISION: 4.1"))
    assert jetpack.status == "broken"
    assert "flash JetPack 6" in jetpack.fix


def test_fake_container_on_a_jetson_shows_by_its_device_tree(fake_machine) -> None:
    machine = fake_machine({"/proc/device-tree/compatible": "nvidia,p3971\0nvidia,tegra264\0"})
    assert machine.is_jetson
    assert "a container?" in check_jetson(machine)[0].detail


def test_other_arm_boards_are_no_jetsons(fake_machine) -> None:
    assert not fake_machine(
        {"/proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0"}
    ).is_jetson
