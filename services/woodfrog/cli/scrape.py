"""What a Prometheus needs to scrape a local cluster: a list of targets that it reads by file_sd."""

import json

from woodfrog.cli.cluster import Cluster

FILE = "prometheus-targets.json"


def write(cluster: Cluster) -> None:
    """Into the cluster's folder; Prometheus looks at it again when it changes."""
    new = cluster.home / f"{FILE}.new"
    new.write_text(json.dumps(targets(cluster), indent=1))
    new.replace(cluster.home / FILE)


def targets(cluster: Cluster) -> list[dict[str, object]]:
    """One for each process, with `service` as its label and, where it is a node's, `node`."""
    named: dict[str, str] = {}
    for number, node in enumerate(cluster.nodes, 1):
        end = "" if number == 1 else f"-{number}"
        named |= {f"{service}{end}": node.name for service in ("weight_fs", "node_agent")}
    found: list[dict[str, object]] = []
    for child, address in cluster.metrics.items():
        labels = {"service": child.partition("-")[0]}
        if child in named:
            labels["node"] = named[child]
        found.append({"targets": [address], "labels": labels})
    return found
