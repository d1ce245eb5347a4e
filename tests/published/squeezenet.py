# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""SqueezeNet is in no release of `transformers`: tests/models/test_conv_families.py has what it is compared with."""

MODEL = None
