"""The papers, honestly: their plans simulated, and their claims beside what is predicted."""
