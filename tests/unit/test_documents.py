"""What README and guides show is what the project takes."""

import re
from pathlib import Path

import pytest
import yaml

from finetune_operator.manifests.build import build_manifests
from finetune_operator.plan.decide import decide_plan
from finetune_operator.plan.layout import ContainerLayout
from finetune_operator.settings import Settings
from finetune_operator.spec.parse import parse_finetunejob

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
JOBS = [
    pytest.param(job, id=f"{document.name}, {job['metadata']['name']}")
    for document in DOCUMENTS
    for block in re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    for job in yaml.safe_load_all(block)
]


@pytest.mark.parametrize("job", JOBS)
def test_jobs_can_be_rendered(job):
    job["metadata"]["namespace"] = "team-a"
    parsed, settings, layout = parse_finetunejob(job), Settings(), ContainerLayout()
    kinds = [each["kind"] for each in build_manifests(parsed, decide_plan(parsed, settings, layout), settings, layout)]
    assert kinds[-1] == "Job"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert links
    assert [link for link in links if not (document.parent / link).exists()] == []
