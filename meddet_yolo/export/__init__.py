"""Export of detectors behind a parity gate."""
