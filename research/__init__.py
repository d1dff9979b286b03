"""What was asked of the product and measured: a folder a study, see README.md. Nothing of it is shipped."""
