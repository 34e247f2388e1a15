"""`mmserver experiments`: two versions tried against each other on live requests; works beside a running server, which follows."""

from typing import TYPE_CHECKING, Any

import click
import msgspec

from mmserver.cli.experiments_results import analysis, evaluations, outcomes, print_report, replay, show
from mmserver.cli.experiments_simulating import simulate
from mmserver.cli.experiments_values import (
    ARM,
    MOMENT,
    POLICIES,
    SLICE,
    STATUSES,
    actor,
    opened,
    policy_object,
    print_experiment,
)
from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows
from mmserver.cli.registry_values import JSON_OBJECT, NAMED_VALUE
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.experiments.experiments import Status
    from mmserver.web.experiment_bodies import ExperimentItem

COLUMNS = ("experiment_id", "status", "control", "treatment", "traffic_split", "mode", "auto", "started_at", "applied")
SHARE = click.FloatRange(0.0, 1.0)
ACTIONS = ("promote", "rollback", "keep")


@click.group()
def experiments() -> None:
    """Two versions tried against each other on live requests: start, watch, decide, apply; and what decisions are worth."""


for command in (show, analysis, outcomes, evaluations, replay, simulate):
    experiments.add_command(command)


@experiments.command()
@click.argument("experiment_id", metavar="ID")
@click.option("--control", type=ARM, required=True, help="What is there: a version's label, a stage or latest.")
@click.option("--treatment", type=ARM, required=True, help="What may be better.")
@click.option("--split", type=SHARE, default=0.9, show_default=True, help="The control's share of the units.")
@click.option("--mode", default="split", show_default=True, help="split; or shadow: both score, the control answers.")
@click.option("--unit", help="What is put into an arm: symbol|time-block, prediction, symbol or unit_id.")
@click.option("--block-s", type=float, help="How long a block of time is, in seconds [3600; in the shadow 86400].")
@click.option("--horizon-s", type=float, help="How long after a prediction its outcome is known, in seconds [0].")
@click.option("--namespace", type=SLICE, help="Its share of the units, disjoint from other experiments' on the model.")
@click.option("--policy", type=click.Choice(POLICIES), help="By what it is decided [sequential].")
@click.option("--set", "numbers", type=NAMED_VALUE, multiple=True, help="A number of the policy, such as alpha=0.01.")
@click.option("--policy-json", type=JSON_OBJECT, help="The whole policy as JSON, or @FILE.")
@click.option("--auto", is_flag=True, help="Apply the decision as soon as there is one.")
@click.option("--deadline", type=MOMENT, help="When it ends, decided or not, such as 2026-12-01T08:00:00Z.")
@click.option("--draft", is_flag=True, help="Do not start it yet.")
@with_settings()
@json_option
def create(settings: Settings, experiment_id: str, split: float, draft: bool, as_json: bool, **said: Any) -> None:
    """Set up experiment ID and start it: from then on requests for the control's model are put into its arms."""
    from mmserver.catalog.opening import open_store
    from mmserver.experiments.lifecycle import create_experiment
    from mmserver.experiments.planning import checked_plan, rest_of

    given = {name: said[name] for name in ("unit", "block_s", "horizon_s") if said[name] is not None}
    plan = checked_plan(
        experiment_id=experiment_id,
        control=said["control"],
        treatment=said["treatment"],
        treatment_weight=rest_of(split),
        mode=said["mode"],
        namespace=said["namespace"],
        policy=policy_object(said["policy"], said["numbers"], said["policy_json"]),
        auto=said["auto"],
        deadline_at=said["deadline"],
        **given,
    )
    with open_store(settings, owns_data_dir=False) as store:
        print_experiment(create_experiment(store, plan, actor(), start=not draft), as_json=as_json)


@experiments.command()
@click.argument("experiment_id", metavar="ID")
@with_settings()
@json_option
def start(settings: Settings, experiment_id: str, as_json: bool) -> None:
    """Start a draft."""
    from mmserver.catalog.opening import open_store
    from mmserver.experiments.lifecycle import start_experiment

    with open_store(settings, owns_data_dir=False) as store:
        print_experiment(start_experiment(store, experiment_id, actor()), as_json=as_json)


@experiments.command()
@click.argument("experiment_id", metavar="ID")
@click.option("--treatment-share", type=SHARE, required=True, help="The treatment's share of the units from now on.")
@click.option("--redraw", is_flag=True, help="Draw all units anew; without it a share can only grow.")
@with_settings()
@json_option
def ramp(settings: Settings, experiment_id: str, treatment_share: float, redraw: bool, as_json: bool) -> None:
    """Go on with another share, in a new phase; units that are treated stay so."""
    from mmserver.catalog.opening import open_store
    from mmserver.experiments.lifecycle import ramp_experiment

    with open_store(settings, owns_data_dir=False) as store:
        experiment = ramp_experiment(store, experiment_id, treatment_share, actor(), redraw=redraw)
        print_experiment(experiment, as_json=as_json)


@experiments.command(name="list")
@click.option("--status", type=click.Choice(STATUSES), help="Only those in this status.")
@with_settings()
@json_option
def list_(settings: Settings, status: "Status | None", as_json: bool) -> None:
    """Show every experiment, the newest first."""
    from mmserver.catalog.opening import open_store
    from mmserver.experiments.experiments import list_experiments
    from mmserver.web.experiment_bodies import item_from_experiment

    with open_store(settings, owns_data_dir=False) as store:
        items = [item_from_experiment(experiment) for experiment in list_experiments(store, status=status)]
    if as_json:
        print_json({"items": items})
    else:
        print_rows(map(_row, items), COLUMNS, as_json=False)


@experiments.command()
@click.argument("experiment_id", metavar="ID")
@with_settings()
@json_option
def stop(settings: Settings, experiment_id: str, as_json: bool) -> None:
    """End it, and show the final report; requests get what the model serves from now on."""
    from mmserver.experiments.evaluating import stop_and_report

    with opened(settings) as (store, observations):
        experiment, found = stop_and_report(store, observations, experiment_id, actor())
        print_report(experiment, found, store.now(), as_json=as_json)


@experiments.command()
@click.argument("experiment_id", metavar="ID")
@click.option("--action", type=click.Choice(ACTIONS), help="Do this, whatever is recommended.")
@with_settings()
@json_option
def apply(settings: Settings, experiment_id: str, action: Any, as_json: bool) -> None:
    """End it if it runs, and do once what is recommended: promote the treatment, or keep the control."""
    from mmserver.experiments.evaluating import apply_result
    from mmserver.web.experiment_bodies import AppliedExperiment, Promoted, item_from_experiment

    with opened(settings) as (store, observations):
        experiment, detail = apply_result(store, observations, experiment_id, actor(), action=action)
    if as_json:
        assert experiment.applied is not None  # noqa: S101 (it has just been)
        promoted = detail["promoted"]
        print_json(
            AppliedExperiment(
                action=experiment.applied,
                promoted=None if promoted is None else Promoted(**promoted),
                experiment=item_from_experiment(experiment),
            )
        )
    else:
        print_experiment(experiment, as_json=False, **detail)


def _row(item: "ExperimentItem") -> dict[str, Any]:
    arms = {
        "control": f"{item.control_model}:{item.control_version}",
        "treatment": f"{item.treatment_model}:{item.treatment_version}",
    }
    return {**msgspec.structs.asdict(item), **arms}
