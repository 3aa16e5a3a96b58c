"""``kubectl finetune``: FineTuneJobs of a cluster, by kubectl itself with the person's own kubeconfig and rights."""
