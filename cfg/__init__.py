"""Model, distillation and data set configuration files shipped with the package."""
