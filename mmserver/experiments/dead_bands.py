"""The dead bands of an instance: of its settings, and of its experiments, in which both arms are judged by the control's."""

from mmserver.catalog.store import Store
from mmserver.experiments.experiments import list_experiments
from mmserver.experiments.observations.dead_bands import DeadBands


def dead_bands_of(store: Store) -> DeadBands:
    """What outcomes that have only a return are labelled by."""
    default, by_model = store.settings.dead_band, store.settings.dead_bands
    return DeadBands(
        default,
        by_model,
        {one.log_key: by_model.get(one.control.model_name, default) for one in list_experiments(store)},
    )
