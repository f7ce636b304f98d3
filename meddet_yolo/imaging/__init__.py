"""Medical images as they come: DICOM and NIfTI in, upright grey pictures with their geometry and no identity out."""
