"""The paper: three stages as phases of one nerfstudio trainer."""
