"""Deformable attention of DAT."""
