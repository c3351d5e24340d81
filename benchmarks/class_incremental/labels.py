"""What the methods of the class-incremental tables are called."""

__all__ = ["LABELS"]

#: Label of every method, in the order of the rows.
LABELS = {
    "care": "CaRE",
    "care_normalized": "CaRE, entropies by task size",
    "care_linear": "CaRE, linear routers",
    "care_released": "CaRE, as released",
    "care_ensemble": "CaRE, a forward per task",
    "care_unaligned": "CaRE without alignment",
    "care_paper": "CaRE, as printed",
    "care_trained": "CaRE, five epochs",
    "aligned_heads": "aligned cosine heads, no experts",
    "lora": "LoRA, sequential fine-tuning",
    "compose": "compose, a LoRA per task, routed by classes",
    "compose_heads": "compose by classes, a head per task, no LoRA",
    "compose_tasks": "compose, routed by means of tasks, heads from zero",
    "ncm": "nearest mean",
    "slda": "SLDA",
    "slda_oas": "SLDA, OAS shrinkage",
    "slda_layers": "SLDA, OAS, three layers",
    "ncm_layers": "nearest mean, three layers",
    "ranpac_layers": "RanPAC, three layers",
    "whitened_mean": "whitened mean",
    "whitened_layers": "whitened mean, four layers",
    "ridge": "ridge",
    "ranpac": "RanPAC",
    "ridge_grid": "ridge, lambda by each task",
    "ranpac_grid": "RanPAC, lambda by each task (published)",
    "ranpac_lora": "RanPAC after a LoRA on task 1",
    "layup": "ridge, six layers (LayUP)",
    "fecam": "FeCAM",
    "fecam_shared": "FeCAM, one covariance",
    "joint": "linear head, all tasks at once",
}
