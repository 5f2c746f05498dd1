"""``gateshift translate``: files in, six files and a ledger out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from gateshift.apisix.admin import AdminClient
from gateshift.apisix.model import Configuration, Router
from gateshift.apisix.own_shift import without_own_shift
from gateshift.apisix.readers import read_files
from gateshift.errors import InputError
from gateshift.params import load, only
from gateshift.params.model import ClusterParams, TranslateParams
from gateshift.runbook.inputs import resolvers
from gateshift.translate.engine import translate
from gateshift.translate.model import Target, Translation
from gateshift.translate.proof import Proof, prove
from gateshift.translate.report import write_translation

__all__ = ["translate_command"]

_ROUTERS = [str(one) for one in Router]


_KUBE = "kube://"


def _read_cluster(source: str, namespaces: Sequence[str]) -> Configuration:
    from gateshift.cluster.client import Cluster  # noqa: PLC0415 - only for this source
    from gateshift.cluster.custom_resources import read_custom_resources  # noqa: PLC0415 - see above

    context = source.removeprefix(_KUBE) or None
    # With a context named, a pod's own cluster is never meant.
    default = str(Path.home() / ".kube" / "config") if context else None
    kubeconfig = os.environ.get("KUBECONFIG") or default
    cluster = Cluster.connect(ClusterParams(kubeconfig=kubeconfig, context=context))
    return read_custom_resources(cluster, namespaces, source=source)


def _read(sources: Sequence[str], admin_key: str | None, namespaces: Sequence[str]) -> Configuration:
    clusters = [one for one in sources if one.startswith(_KUBE)]
    if clusters:
        if len(sources) > 1:
            raise InputError("a cluster cannot be joined with other sources", hint="name one source")
        return _read_cluster(clusters[0], namespaces)
    if namespaces:
        raise InputError("--in-namespace is for a cluster", hint="name the cluster by --in kube://CONTEXT")
    addresses = [one for one in sources if one.startswith(("http://", "https://"))]
    if not addresses:
        for one in sources:
            if not Path(one).exists():
                raise InputError(f"{one} does not exist", hint="name an APISIX configuration file after --in")
        return read_files(sources)
    if len(sources) > 1:
        raise InputError(
            "an Admin API is the whole configuration: it cannot be joined with files", hint="name one source"
        )
    if not admin_key:
        raise InputError(
            "reading an Admin API needs its key",
            hint="set APISIX_ADMIN_KEY; a key of the role viewer is enough",
        )
    with AdminClient(addresses[0], admin_key) as client:
        return client.read()


def _summary(translation: Translation, proof: Proof, folder: Path) -> dict[str, object]:
    return {
        "out": str(folder),
        "objects": len(translation.objects),
        "ledger": translation.counts(),
        "blockers": [one.as_json() for one in translation.blockers],
        "hosts": [one.as_json() for one in translation.forms],
        "warnings": list(translation.warnings),
        "proof": {
            "checked": proof.checked,
            "undecided": proof.undecided,
            "closed": proof.closed,
            "disagreements": [str(one) for one in proof.disagreements],
        },
    }


def _show(translation: Translation, proof: Proof, folder: Path) -> None:
    click.echo(f"{len(translation.objects)} objects in {folder}")
    click.echo("ledger: " + ", ".join(f"{n} {kind}" for kind, n in translation.counts().items()))
    closed = f", {proof.closed} of other routes closed by what is held back" if proof.closed else ""
    click.echo(f"proof: {proof.checked} requests, {len(proof.disagreements)} disagreements{closed}")
    for form in translation.forms:
        click.echo(f"host {form.host}: {form.form}" + (f", because {form.why}" if form.why else ""))
    for one in translation.warnings:
        click.echo(f"warning: {one}")
    for difference in proof.disagreements:
        click.echo(f"disagreement: {difference}")
    for blocker in translation.blockers:
        click.echo(f"blocker: {blocker}; a signature names {blocker.covers}")


@click.command("translate")
@click.option(
    "--in",
    "sources",
    multiple=True,
    required=True,
    help="An APISIX configuration (may repeat), the address of an Admin API (http://host:9180), or a cluster "
    "with the objects of APISIX's ingress controller (kube://CONTEXT; kube:// is the current context).",
)
@click.option(
    "--in-namespace", "namespaces", multiple=True, help="Read only this namespace of the cluster; may repeat."
)
@click.option(
    "--admin-key", envvar="APISIX_ADMIN_KEY", help="Key of the Admin API; better in the environment."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the result.")
@click.option("--istio-version", default="1.31", show_default=True, help="1.20 to 1.31.")
@click.option("--router", type=click.Choice(_ROUTERS), help="apisix.router.http of the old gateway.")
@click.option("--namespace", default="default", show_default=True, help="Namespace of the applications.")
@click.option("--gateway-namespace", default="istio-system", show_default=True)
@click.option(
    "--output",
    type=click.Choice(["istio", "gateway-api"]),
    help="gateway-api: hosts as HTTPRoute and GRPCRoute where that is exact. Default: as in the params.",
)
@click.option("--params", "params_file", type=click.Path(path_type=Path), help="Take `translate:` from here.")
@click.option(
    "--requests",
    default=2000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Requests of the routing proof.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def translate_command(
    *,
    sources: tuple[str, ...],
    namespaces: tuple[str, ...],
    admin_key: str | None,
    out: Path,
    istio_version: str,
    router: str | None,
    namespace: str,
    gateway_namespace: str,
    output: str | None,
    params_file: Path | None,
    requests: int,
    as_json: bool,
) -> None:
    """Translate APISIX configurations to Istio objects, with a ledger and a routing proof.

    Exit code 0: everything is accounted for and nothing blocks. 3: a blocker or a disagreement waits for a
    person. 2: the input cannot be read.
    """
    given = load(params_file, resolvers=resolvers(), needs=only("translate")) if params_file else None
    params = given.translate if given else TranslateParams()
    if output:
        params = TranslateParams.model_validate({**params.model_dump(), "output": output})
    configuration = without_own_shift(_read(sources, admin_key, namespaces))
    target = Target(
        version=istio_version,
        namespace=namespace,
        gateway_namespace=gateway_namespace,
        gateway_service=given.istio.gateway_service if given else "istio-ingressgateway",
        router=Router(router) if router else None,
    )
    translation = translate(configuration, params, target)
    proof = prove(configuration, translation, requests=requests)
    write_translation(translation, out)
    if as_json:
        click.echo(json.dumps(_summary(translation, proof, out), indent=1, ensure_ascii=False))
    else:
        _show(translation, proof, out)
    if translation.blockers or proof.disagreements:
        sys.exit(3)
