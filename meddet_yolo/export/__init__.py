"""`meddet export`: one request, one table of formats, images to compare and calibrate with."""
