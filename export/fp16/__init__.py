"""The FP16 file: conversion, its proof, and FP16 rounding simulated on a CPU."""
