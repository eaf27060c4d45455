"""Exported models as ExecuTorch programs for XNNPACK: conversion, and the program run here."""
