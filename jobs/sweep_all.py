"""Search the best recipe for every category of a data set: ``ssray sweep`` as a job.

ray job submit --working-dir . -- python jobs/sweep_all.py --data ROOT --models STORE --out DIR
"""

from ssray.cli.options import run
from ssray.cli.training import sweep

if __name__ == "__main__":
    run(sweep)
