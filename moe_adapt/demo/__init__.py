"""The embedded default: fine-tune a real encoder on real text with no network, and look at what came out.

Run it with ``python -m moe_adapt.demo`` or ``moe-adapt demo``.
"""
