"""Evaluate the models of a store on the labelled test images: ``ssray evaluate`` as a job.

ray job submit --working-dir . -- python jobs/evaluate_all.py --data ROOT --models STORE --out DIR
"""

from ssray.cli.options import run
from ssray.cli.scoring import evaluate

if __name__ == "__main__":
    run(evaluate)
