# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""DistilBERT, small."""

MODEL = "DistilBertModel"
CONFIGS = [{"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40, "max_position_embeddings": 12}]
