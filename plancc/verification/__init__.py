"""Verification: all ranks of an artifact in one process, against the one-device model."""

from plancc.verification.check import VariantResult, Verification, VerifyResult, verify

__all__ = ["VariantResult", "Verification", "VerifyResult", "verify"]
