"""Training loop and its tasks: supervised, ranker, post-training."""

from adagrpo.trainer.batches import BatchSchedule, TrainingBatch
from adagrpo.trainer.loop import fit
from adagrpo.trainer.post_training import Arm, PostTraining, Supervised
from adagrpo.trainer.ranker_fit import RankerFit
from adagrpo.trainer.task import Diverged, FitResult, Task, Watched

__all__ = [
    "Arm",
    "BatchSchedule",
    "Diverged",
    "FitResult",
    "PostTraining",
    "RankerFit",
    "Supervised",
    "Task",
    "TrainingBatch",
    "Watched",
    "fit",
]
