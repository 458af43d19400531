"""Empty: OFA's ImageNet exam imports it and uses it only on image folders."""
