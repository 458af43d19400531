"""From a case to a sealed dossier; never torch. The report and the human gate live here too."""
