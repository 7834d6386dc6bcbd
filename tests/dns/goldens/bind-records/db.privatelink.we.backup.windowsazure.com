; Undercroft dns export of private endpoints: door (rg)
; written 2026-11-27T03:00:00Z; mode records
; Included by undercroft.conf.
; NAMES WILL BE ADDED: blob and queue after the first registration, blob after the first backup, more as the
; vault grows. 'undercroft dns watch' keeps this current; 'undercroft dns diff' says what a resolver lacks.
$TTL 10
@ IN SOA localhost. hostmaster.localhost. ( 1795748400 3600 300 2419200 10 )
@ IN NS localhost.
8726350008099341699-ab-pod01-id1 IN A 10.20.1.4
8726350008099341699-ab-pod01-rec2 IN A 10.20.1.5
