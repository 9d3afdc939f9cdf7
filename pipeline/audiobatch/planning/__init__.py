"""What a run would take, before anything is sent: tokens, money, time and room."""
