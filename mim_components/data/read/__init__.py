"""Bytes to voxels, checked to the last one."""
