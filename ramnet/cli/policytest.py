"""``ramnet policy test``: does a policy allow what it must, and nothing that it must not?"""

from __future__ import annotations

import click

from ramnet.cli.exits import DENIED, OK, json_option, policy_option, print_json
from ramnet.core.allow import allow_list
from ramnet.core.catalog import load_catalog
from ramnet.core.policy import policy_digest
from ramnet.core.policytest import MAX_LIST, Case, judge_cases, read_cases
from ramnet.host.clock import today
from ramnet.host.files import read_limited, read_policy


@click.command()
@click.option("--allow", multiple=True, metavar="FILE", help="A list of what must be allowed.")
@click.option("--deny", multiple=True, metavar="FILE", help="A list of what must be refused.")
@policy_option
@json_option
def test(allow: tuple[str, ...], deny: tuple[str, ...], policy_path: str, as_json: bool) -> int:
    """Hold a policy against lists: an image, host or address a line, # begins a comment.

    Judged by the policy file alone, no daemon is asked. Every line that fails is told. Exit code: 0
    all passed, 1 one failed.
    """
    if not allow and not deny:
        raise click.UsageError("give --allow FILE, --deny FILE or both")
    cases: list[Case] = []
    for paths, expected in ((allow, True), (deny, False)):
        for path in paths:
            cases += read_cases(read_limited(path, MAX_LIST), source=path, allow=expected)
    policy = read_policy(policy_path)
    results = list(judge_cases(cases, allow_list(policy, load_catalog(), today())))
    failed = [result for result in results if not result.passed]
    if as_json:
        counts = {"tested": len(results), "failed": len(failed), "passed": not failed}
        head = {"schema": 1, "source": policy_path, "digest": policy_digest(policy), **counts}
        print_json({**head, "results": [result.plain for result in results]})
    else:
        for result in failed:
            click.echo(str(result))
        told = f"{len(failed)} failed" if failed else "all passed"
        click.echo(f"{policy_path}: {len(results)} tested, {told}")
    return DENIED if failed else OK
