"""Simulation of counts with a known hierarchy and known genes, for tests of the method."""
