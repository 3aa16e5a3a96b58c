"""What README and guides show is what the project takes."""

import re
from pathlib import Path

import pytest
import yaml

from tests.unit.world import decide

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
    assert decide(job)[1][-1]["kind"] == "Job"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert links
    assert [link for link in links if not (document.parent / link).exists()] == []
