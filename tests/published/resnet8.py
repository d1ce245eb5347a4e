# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""No class of `transformers`: tests/models/test_conv_families.py compares with the published network itself."""

MODEL = None
