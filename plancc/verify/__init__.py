"""Verification: all ranks of an artifact in one process, against the one-device model."""

from plancc.verify.check import VariantResult, Verification, VerifyResult, verify

__all__ = ["VariantResult", "Verification", "VerifyResult", "verify"]
