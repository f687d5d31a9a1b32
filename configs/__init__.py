"""Runs, one file each: `get_config() -> Config`. Variants are programs that replace fields of another."""
