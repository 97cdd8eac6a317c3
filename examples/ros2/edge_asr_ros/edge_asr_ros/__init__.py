"""A ROS 2 node that hears: `node` is the shell, the other modules run without ROS."""
