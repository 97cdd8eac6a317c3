"""Installs the package where ament looks for it; `colcon build` runs this."""

from setuptools import setup

NAME = "edge_asr_ros"

setup(
    name=NAME,
    version="0.1.0",
    description="Speech recognition on the device as a ROS 2 node",
    license="Apache-2.0",
    maintainer="edge-asr developers",
    maintainer_email="edge-asr@example.com",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/config", ["config/edge_asr.yaml"]),
        (f"share/{NAME}/launch", ["launch/edge_asr.launch.py"]),
    ],
    install_requires=["setuptools"],  # edge-asr itself comes from pip, with the extra for the device
    zip_safe=True,
    entry_points={"console_scripts": [f"edge_asr_node = {NAME}.node:main"]},
)
