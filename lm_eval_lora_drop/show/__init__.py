"""What a person sees of a run: verdict, tables, figures, reports, cards; reads the record, knows no model."""
