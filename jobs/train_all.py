"""Train a model for every category of a data set: ``ssray train`` as a job.

ray job submit --working-dir . -- python jobs/train_all.py --data ROOT --models STORE
"""

from ssray.cli.options import run
from ssray.cli.training import train

if __name__ == "__main__":
    run(train)
