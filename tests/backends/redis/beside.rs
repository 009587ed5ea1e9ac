//! A store in a database with many other keys.

use super::*;

const OTHERS: u32 = 300_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_times_out_says_why_and_stats_still_count() -> Result {
    let server = Server::start(&["--enable-debug-command", "yes"]);
    server.raw().words(&format!("DEBUG POPULATE {OTHERS} other 8"));
    let proxy = Proxy::start(server.addr()).await;
    let storage = Storage::<Redis>::open(format!("redis://{}?min_idle=1", proxy.addr).as_str()).await?;
    storage.set_credential("a", json!({})).await?;
    storage.increment_usage("r", "n", 1).await?;
    // With far fewer round trips than keys.
    assert_eq!(storage.list_credentials().await?, [key("a")]);
    let stats = storage.stats().await?;
    assert_eq!((stats.credential_count, stats.usage_record_count), (1, 1));
    assert_eq!(stats.details["warnings"], json!([]));

    proxy.delay_replies(Duration::from_millis(50));
    let hurried = storage.with_deadline(Duration::from_secs(1));
    let error = hurried.list_credentials().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::NotApplied), "{error:?}");
    assert!(error.to_string().contains("give the store a database or a server of its own"), "{error}");
    let stats = hurried.stats().await?;
    let warnings = stats.details["warnings"].to_string();
    assert!(warnings.contains("the counts are too low") && stats.credential_count <= 1, "{warnings}");
    // An export has no deadline as a whole.
    let exported = hurried.export().filter(|record| std::future::ready(record.is_ok())).count().await;
    assert_eq!(exported, 2);
    storage.close().await
}
