"""Score a night's images, each exactly once: ``ssray nightly`` as a job.

ray job submit --working-dir . -- python jobs/score_nightly.py \
    --images s3://prod/2026-11-21/ --models s3://models --out s3://scores --date 2026-11-21
"""

from ssray.cli.nightly import nightly
from ssray.cli.options import run

if __name__ == "__main__":
    run(nightly)
