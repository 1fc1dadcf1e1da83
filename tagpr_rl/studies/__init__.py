"""What is measured of a finished run: PRMU on unseen users, faithfulness, exports and rescoring."""
