"""The training loop, one function from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from models.augmentation import follows_overfitting
from models.config import Config
from models.errors import ConfigError
from models.training import TrainingConfig
from training.data.batches import TrainingItems, batches
from training.data.dataset import Dataset
from training.engine.augmentation import Overfitting
from training.engine.checkpoint import CheckpointError, TrainingState, newest_checkpoint
from training.engine.cuda_graphs import graphs_on
from training.engine.graphed_step import GRAPHED, GraphedStep, exchanges_samples, graph_obstacle
from training.engine.memory import keep_freed_memory, shortage_told
from training.engine.origin import Start
from training.engine.privacy import PrivateStep, begin_private
from training.engine.runs import (
    Interrupted,
    Row,
    Watch,
    begin,
    no_watch,
    not_enough,
    step_seed,
)
from training.engine.split import Split
from training.engine.step import CriticStep
from training.engine.whole_step import MakesStep, PlainStep, WholeStep
from training.engine.workers import ALONE, Workers
from training.progress import never, silent


def train(
    config: Config,
    data: Dataset,
    folder: Path,
    device: torch.device,
    report: Callable[[Row], None] = silent,
    stop_requested: Callable[[], bool] = never,
    workers: Workers = ALONE,
    watch: Watch = no_watch,
    say: Callable[[str], None] = silent,
    start: Start | None = None,
    enough: Callable[[int], bool] = not_enough,
) -> tuple[TrainingState, list[Row]]:
    """Train a generator and a critic, from the newest checkpoint in ``folder`` if there is one.

    Everything random in a step follows from (seed, step), so a resumed run repeats, bit by bit
    on a CPU, what an uninterrupted one does. Several processes do, up to rounding, what one does.

    Args:
        config: the run's configuration.
        data: what to train on.
        folder: for checkpoints.
        device: where to train.
        report: called with each new row of the history.
        stop_requested: asked after each generator step.
        workers: processes that train together; each takes a part of the batch, and one writes.
        watch: called after each generator step; it may draw random numbers.
        say: takes a line for people.
        start: the trained model that a new run begins with; None: with random weights.
        enough: asked of the main process with the generator steps done; True ends the training
            before all steps are.

    Returns:
        The final state, and the history.

    Raises:
        Interrupted: `stop_requested` said so.
        Diverged: with a diagnosis.
        CheckpointError: the newest checkpoint is broken, or belongs to another configuration or to
            other data; or more steps are asked of a run that was over before.
        ShapeError: the model to begin with does not fit.
        ConfigError: the device or a network cannot do what is asked.
        MemoryError: there is too little memory for a step; it says what needs less.
    """
    settings = config.training
    _set_precision(settings, device)
    keep_freed_memory()

    # Networks, optimisers and history: new, or from the newest checkpoint.
    run = begin(config, data, folder, device, newest_checkpoint(folder), workers, start, say)
    state, critic = run.state, run.state.critic

    # The data, in an order that a resumed run continues.
    graphed, mode = _graphed(run.critic_step, config, device, workers, say)
    items = TrainingItems(data, device, whole=graphed or None)
    first_batch = run.step * settings.num_critic_steps
    seed = settings.seed
    order = batches(seed, len(items), settings.batch_size, first_batch)

    # This process's rows of each batch; within `draws` it also gets its rows of random numbers.
    rows, draws = workers.rows(settings.batch_size), workers.draws(settings.batch_size)
    split = Split(settings.micro_batch_size, draws)
    autocast = torch.autocast(device.type, torch.bfloat16, settings.precision == "bf16")
    find_critic_gradients: CriticStep | PrivateStep = CriticStep(
        "eager" if exchanges_samples(config, workers) else mode,
        critic,
        config.constraint,
        settings.precision,
        autocast,
        split,
        say,
    )
    private = begin_private(config, data, folder, workers, is_new=not run.step)
    if private:  # whole random samples of the rows, clipped and noised gradients, a secret seed
        seed, order, rows = private.secret.seed, private.batches(first_batch), slice(None)
        find_critic_gradients = private.critic_step(critic)
    whole = WholeStep(config, data, state, find_critic_gradients, device, workers, autocast, split)
    make_step: MakesStep = PlainStep(whole, items)
    if graphed:
        make_step = GraphedStep(whole, make_step, items, device, graphs_on(device), say)
    measure_overfitting = None
    if follows_overfitting(config.augmentation):
        measure_overfitting = Overfitting(whole, data, items, device, draws)

    def is_enough() -> bool:
        return config.selection is not None and workers.any(enough(run.step))

    run.start_clock()
    ended = is_enough()
    if ended and run.origin.extended and run.step <= run.origin.extended[-1]:
        raise CheckpointError(
            f"{folder.parent}: its run ended by selection.patience at step {run.step}, so more "
            "steps would not be made; train with more patience in another --out, or begin there "
            "with its model, by --from"
        )
    while not (run.is_finished or ended):
        # The critic steps, the generator step and its moving average.
        numbers = [next(order)[rows] for _ in range(settings.num_critic_steps)]
        with shortage_told(config, workers.count):
            found = make_step(numbers, run.step, step_seed(seed, run.step))

        run.step += 1
        if measure_overfitting is not None:
            measure_overfitting(run.step, found)

        # Check and log. Saving is preceded by the check too: no bad checkpoint is written.
        stopping = workers.any(stop_requested())
        logging = run.is_due(settings.log_every)
        saving = stopping or run.is_due(settings.checkpoint_every)
        if logging or saving:
            gap = workers.mean(found.gap)
            run.require_sane(gap.item())
        if logging:
            critic.eval()
            norms = whole.gradient_norms(found)
            critic.train()
            loss, norm = workers.mean(found.loss), workers.mean(norms.mean())
            report(run.log(gap.item(), loss.item(), norm.item()))
        watch(run.step, state)
        ended = is_enough()
        if ended and not saving:
            run.require_sane(workers.mean(found.gap).item())

        # Save.
        if saving or ended:
            run.critic_step = make_step.mode
            if workers.is_main:
                run.save()
            workers.wait()
        if stopping and not (run.is_finished or ended):
            raise Interrupted(f"stopped after {run.step} of {settings.steps} steps")
    return state, run.history


def _graphed(
    mode: str, config: Config, device: torch.device, workers: Workers, say: Callable[[str], None]
) -> tuple[bool, str]:
    """Decide if whole steps are graphed, and how the critic's gradients are computed then."""
    obstacle = graph_obstacle(config, workers)
    if mode not in GRAPHED:
        return mode == "auto" and device.type == "cuda" and not obstacle, mode
    if obstacle:
        say(f"the whole step is not graphed: {obstacle}")
    elif device.type != "cuda":
        say("the whole step is graphed on CUDA devices only: here its kernels run one by one")
    return not obstacle, GRAPHED[mode]


def _set_precision(settings: TrainingConfig, device: torch.device) -> None:
    if settings.precision == "tf32" and device.type != "cuda":
        raise ConfigError("training.precision: 'tf32' needs a CUDA device; use fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
