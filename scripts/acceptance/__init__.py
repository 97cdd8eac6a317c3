"""Parts of scripts/gpu_acceptance.py: settings, runners, measuring, sections, the report."""
