"""Where rows come from: tables, folders, arrays; their labels; tokenizers."""
