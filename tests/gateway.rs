//! `--route`: application servers behind this one. Real programs for what
//! works, fake ones for what a peer can do wrong.

mod addresses;
mod authorizer;
mod cgi_answers;
mod dokuwiki;
mod fastcgi;
mod http_answers;
mod misbehaviour;
mod peers;
mod php_fpm;
mod proxy;
mod requests;
mod routes;
mod scgi;
mod sticky;
mod streams;
mod uwsgi;
