"""The catalogue's file holds all hosts that are known, each as well as it is known.

The table is what was gathered; a host that leaves the file, or changes its source, is seen here.
"""

from __future__ import annotations

import pytest

from ramnet.core.catalog import Role, Source, load_catalog
from ramnet.core.names import parse_host
from ramnet.core.placeholders import placeholders

QUAY = "V cdn.quay.io cdn01.quay.io cdn02.quay.io cdn03.quay.io M cdn04.quay.io cdn05.quay.io"
QUAY = f"{QUAY} cdn06.quay.io"
R2 = "r2.cloudflarestorage.com"
JFROG = (
    "aps1-shared-mumbai apne3-shared-osaka apse1-shared-singapore apse2-shared-sydney"
    " apne1-shared-tokyo cac1-shared-canada euc1-shared-frankfurt euw1-shared-ireland"
    " euw2-shared-london ilc1-shared-tlv use1-shared-virginia usw1-shared-california"
    " usw2-shared-oregon"
)
IBM = "V dd0.icr.io dd2.icr.io dd4.icr.io dd6.icr.io"
AREAS = "\n".join(
    f"{area}.icr.io: U {area}.icr.io | | {IBM}"
    for area in ("au", "br", "ca", "de", "es", "jp", "jp2", "uk")
)
ECR = "{account}.dkr.ecr.{region}.amazonaws.com"
# registry: its API hosts | auth | blobs and redirects; each host behind the letter of its source.
KNOWN = f"""
docker.io: V registry-1.docker.io index.docker.io registry.hub.docker.com hub.docker.com
    | V auth.docker.io login.docker.com auth.docker.com cdn.auth0.com
    | V production.cloudflare.docker.com production.cloudfront.docker.com
      docker-images-prod.6aa30f8b08e16409b46e0173d6de2f56.{R2}
      docker-images-prod.s3.dualstack.{{region}}.amazonaws.com
dhi.io: V dhi.io | |
registry.scout.docker.com: V registry.scout.docker.com | |
ghcr.io: M ghcr.io | | M pkg-containers.githubusercontent.com
gcr.io: M gcr.io | | U storage.googleapis.com
us.gcr.io: M us.gcr.io | | U storage.googleapis.com
eu.gcr.io: M eu.gcr.io | | U storage.googleapis.com
asia.gcr.io: M asia.gcr.io | | U storage.googleapis.com
{{location}}-docker.pkg.dev: V {{location}}-docker.pkg.dev | |
{ECR}: V {ECR} {{account}}.dkr-ecr.{{region}}.on.aws {{account}}.dkr-ecr-fips.{{region}}.on.aws
    | V api.ecr.{{region}}.amazonaws.com ecr.{{region}}.amazonaws.com sts.{{region}}.amazonaws.com
    | V prod-{{region}}-starport-layer-bucket.s3.{{region}}.amazonaws.com
      M prod-{{region}}-starport-layer-bucket.s3.amazonaws.com
public.ecr.aws: T public.ecr.aws | U api.ecr-public.us-east-1.amazonaws.com
    | T d2glxqk2uabbnd.cloudfront.net d5l0dvt14r5h8.cloudfront.net
quay.io: V quay.io | | {QUAY} V quayio-production-s3.s3.amazonaws.com
registry.redhat.io: V registry.redhat.io | U sso.redhat.com | {QUAY} V access.redhat.com
registry.access.redhat.com: V registry.access.redhat.com | U sso.redhat.com
    | {QUAY} V access.redhat.com
registry.connect.redhat.com: V registry.connect.redhat.com | U sso.redhat.com
    | {QUAY} V access.redhat.com
mcr.microsoft.com: V mcr.microsoft.com | | V *.data.mcr.microsoft.com
mcr.azure.cn: V mcr.azure.cn | | V *.data.mcr.azure.cn
{{registry}}.azurecr.io: V {{registry}}.azurecr.io {{registry}}.{{azure}}.geo.azurecr.io
    | | V {{registry}}.{{azure}}.data.azurecr.io
{{registry}}.{{azure}}.geo.azurecr.io: V {{registry}}.{{azure}}.geo.azurecr.io
    | | V {{registry}}.{{azure}}.data.azurecr.io
registry.gitlab.com: V registry.gitlab.com | M gitlab.com
    | V cdn.registry.gitlab-static.net U storage.googleapis.com
registry.k8s.io: S registry.k8s.io
    | | S {{location}}-docker.pkg.dev
      prod-registry-k8s-io-{{region}}.s3.dualstack.{{region}}.amazonaws.com M cdn.registry.k8s.io
{{tenant}}.jfrog.io: V {{tenant}}.jfrog.io
    | | V {" ".join(f"jfrog-prod-{part}-main.s3.amazonaws.com" for part in JFROG.split())}
{{area}}.ocir.io: V {{area}}.ocir.io | |
artifacts.{{area}}.oci.oraclecloud.com: V artifacts.{{area}}.oci.oraclecloud.com | |
registry.digitalocean.com: M registry.digitalocean.com | M api.digitalocean.com |
icr.io: V icr.io | | {IBM}
us.icr.io: V us.icr.io | | {IBM}
cp.icr.io: V cp.icr.io | | {IBM}
{AREAS}
nvcr.io: M nvcr.io | M authn.nvidia.com api.ngc.nvidia.com | M layers.nvcr.io
cgr.dev: V cgr.dev | V issuer.enforce.dev console-api.enforce.dev
    | V 9236a389bd48b984df91adc1bc924620.{R2}
docker.elastic.co: M docker.elastic.co | M docker-auth.elastic.co
    | M docker-registry-production.d24a988e385e0074d717b6bdaea58f0d.{R2}
lscr.io: M lscr.io | M ghcr.io | U pkg-containers.githubusercontent.com
registry.{{area}}.aliyuncs.com: M registry.{{area}}.aliyuncs.com
    | M dockerauth.{{area}}.aliyuncs.com | M aliregistry.oss-{{area}}.aliyuncs.com
registry.heroku.com: M registry.heroku.com | |
codeberg.org: M codeberg.org | |
proxy.replicated.com: V proxy.replicated.com | |
registry.replicated.com: U registry.replicated.com | |
"""
# What clients contact and no entry may have: any tenant of the cloud can take such a name.
TENANTS = ("acme.blob.core.windows.net", "acme.s3.amazonaws.com", "acme.s3.eu-west-1.amazonaws.com")

Host = tuple[str, Role, Source]


def known() -> dict[str, set[Host]]:
    """Read the table."""
    found: dict[str, set[Host]] = {}
    for line in KNOWN.replace("\n ", " ").split("\n"):
        key, _, rest = line.partition(": ")
        for role, words in zip(Role, rest.split("|"), strict=False):
            source = Source.UNVERIFIED
            for word in words.split():
                if len(word) == 1:
                    source = Source(word)
                else:
                    found.setdefault(key, set()).add((word, role, source))
    return found


def test_the_table_reads_as_it_looks() -> None:
    assert list(Role) == [Role.API, Role.AUTH, Role.BLOB], "the order of its columns"
    table = known()
    assert table["cgr.dev"] == {
        ("cgr.dev", Role.API, Source.VENDOR),
        ("issuer.enforce.dev", Role.AUTH, Source.VENDOR),
        ("console-api.enforce.dev", Role.AUTH, Source.VENDOR),
        (f"9236a389bd48b984df91adc1bc924620.{R2}", Role.BLOB, Source.VENDOR),
    }
    assert ("cdn06.quay.io", Role.BLOB, Source.MEASURED) in table["registry.redhat.io"]
    assert len(table["{tenant}.jfrog.io"]) == 14


def test_the_file_has_the_registries_of_the_table() -> None:
    assert {template.key for template in load_catalog().templates} == known().keys()


@pytest.mark.parametrize("key", known())
def test_the_file_has_the_hosts_of_the_table(key: str) -> None:
    (template,) = (item for item in load_catalog().templates if item.key == key)
    assert {(host.name, host.role, host.source) for host in template.hosts} == known()[key]


def test_no_registry_has_a_host_that_any_tenant_can_take() -> None:
    for name in TENANTS:
        assert load_catalog().owners_of(parse_host(name)) == (), name


def test_what_is_not_known_of_a_registry_is_said() -> None:
    """A registry without a host for tokens or layers serves them itself, or has a note."""
    itself = {"ghcr.io", "quay.io", "mcr.microsoft.com", "mcr.azure.cn"}
    for template in load_catalog().templates:
        roles = {host.role for host in template.hosts if not host.optional}
        google = template.key.endswith("-docker.pkg.dev")
        if roles != set(Role) and template.key not in itself and not google:
            assert template.note, template.key


def test_regions_are_left_open_only_where_an_address_does_not_tell_them() -> None:
    regional = {
        template.key
        for template in load_catalog().templates
        for host in template.hosts
        if placeholders(host.name) - placeholders(template.key)
    }
    assert regional == {"docker.io", "registry.k8s.io", "{registry}.azurecr.io"}
