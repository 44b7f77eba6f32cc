"""The formats by name. A new one is a file beside this one and a line here."""

from llmbench.datasets.azure import read_azure
from llmbench.datasets.burstgpt import read_burstgpt
from llmbench.datasets.csv_file import read_csv, read_tsv
from llmbench.datasets.json_file import read_json
from llmbench.datasets.mooncake import read_mooncake
from llmbench.datasets.openai import read_openai
from llmbench.datasets.parquet import read_parquet
from llmbench.datasets.rows import Reader
from llmbench.datasets.sharegpt import read_sharegpt
from llmbench.datasets.text import read_text

FORMATS: dict[str, Reader] = {
    "openai": read_openai,
    "sharegpt": read_sharegpt,
    "json": read_json,
    "text": read_text,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
    "mooncake": read_mooncake,
    "burstgpt": read_burstgpt,
    "azure": read_azure,
}

TABLES = ("csv", "tsv", "parquet", "json", "mooncake")
"""The formats whose columns the user may name."""
