//! The API's promises, in process over a real Unix socket with the real pool; the buddies are made by hand.

mod support {
    pub mod hand;
    pub mod served;
    pub mod world;
}

mod api {
    mod admin;
    mod allocate;
    mod leases;
    mod serving;
    mod watch;
}
