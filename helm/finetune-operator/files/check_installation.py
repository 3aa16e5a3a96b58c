"""`helm test`: the API server serves FineTuneJobs to the operator's ServiceAccount, and the operator says it is well.

Arguments: the URL of /healthz, then the namespaces watched (none: all).
"""

import sys
from urllib.request import urlopen

from kubernetes import client, config

from finetune_api import names

health_url, *namespaces = sys.argv[1:]
config.load_incluster_config()
api = client.CustomObjectsApi()
if namespaces:
    for namespace in namespaces:
        found = api.list_namespaced_custom_object(names.GROUP, names.VERSION, namespace, names.PLURAL, limit=1)
        print(f"the API server serves {found['kind']} of {namespace}")
else:
    found = api.list_cluster_custom_object(names.GROUP, names.VERSION, names.PLURAL, limit=1)
    print(f"the API server serves {found['kind']}")
with urlopen(health_url, timeout=10) as answer:  # a status of 400 or above raises
    print(f"{health_url}: {answer.read().decode()}")
