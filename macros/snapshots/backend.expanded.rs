/// One of everything.
pub trait Everything: Backend {
    /// Wrapped with the backend.
    type Transaction: Transaction;
    /// No operation.
    fn set_limit(&mut self, limit: usize);
    /// The layer is told, and there is a default.
    fn set_name(&mut self, name: String) {
        drop(name);
    }
    /// The layer adds to what came.
    fn describe(&self) -> impl Future<Output = Result<Text>> + Send;
    /// Borrowed and owned arguments; names that the expansion uses, too.
    fn get(
        &self,
        key: &Key,
        layer: Option<&'static str>,
        inner: Cow<'_, [u8]>,
        call: fn(&str) -> bool,
    ) -> impl Future<Output = Result<Vec<u8>>> + Send;
    /// A batch.
    fn set_many(
        &self,
        items: &[(Key, Value)],
    ) -> impl Future<Output = Result<BatchReport>> + Send;
    /// Gives what is wrapped.
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction>> + Send;
    /// Gives a stream. Its name is a keyword.
    fn r#yield(&self, prefix: &str) -> impl Stream<Item = Result<Record>> + Send;
    /// Its name is a keyword, too.
    fn r#move(&self, r#type: u8) -> impl Future<Output = Result<()>> + Send;
}
const _: () = {
    struct DescribeCall {}
    impl<'on, B: Everything> ::gateway_storage::Call<&'on B> for DescribeCall {
        type Output = Text;
        const OPERATION: ::gateway_storage::Operation = ::gateway_storage::Operation::new(
            "describe",
            ::gateway_storage::OperationKind::Control,
            true,
        );
        #[inline]
        async fn run(&self, on: &'on B) -> ::gateway_storage::Result<Text> {
            <B as Everything>::describe(on).await
        }
    }
    struct GetCall<'call> {
        key: &'call Key,
        layer: Option<&'static str>,
        inner: Cow<'call, [u8]>,
        call: fn(&str) -> bool,
    }
    impl<'on, 'call, B: Everything> ::gateway_storage::Call<&'on B> for GetCall<'call> {
        type Output = Vec<u8>;
        const OPERATION: ::gateway_storage::Operation = ::gateway_storage::Operation::new(
            "get",
            ::gateway_storage::OperationKind::Read,
            true,
        );
        #[inline]
        async fn run(&self, on: &'on B) -> ::gateway_storage::Result<Vec<u8>> {
            <B as Everything>::get(
                    on,
                    ::core::clone::Clone::clone(&self.key),
                    ::core::clone::Clone::clone(&self.layer),
                    ::core::clone::Clone::clone(&self.inner),
                    ::core::clone::Clone::clone(&self.call),
                )
                .await
        }
    }
    struct SetManyCall<'call> {
        items: &'call [(Key, Value)],
    }
    impl<'on, 'call, B: Everything> ::gateway_storage::Call<&'on B>
    for SetManyCall<'call> {
        type Output = BatchReport;
        const OPERATION: ::gateway_storage::Operation = ::gateway_storage::Operation::new(
            "set_many",
            ::gateway_storage::OperationKind::Write,
            true,
        );
        fn batch_size(&self) -> ::core::option::Option<usize> {
            ::core::option::Option::Some(self.items.len())
        }
        fn failure(
            output: &BatchReport,
        ) -> ::core::option::Option<&::gateway_storage::Error> {
            #[allow(unused_imports)]
            use ::gateway_storage::layer::NoReport as _;
            ::gateway_storage::layer::Outcomes(output).failure()
        }
        #[inline]
        async fn run(&self, on: &'on B) -> ::gateway_storage::Result<BatchReport> {
            <B as Everything>::set_many(on, ::core::clone::Clone::clone(&self.items))
                .await
        }
    }
    struct BeginCall {}
    impl<'on, B: Everything> ::gateway_storage::Call<&'on B> for BeginCall {
        type Output = <B as Everything>::Transaction;
        const OPERATION: ::gateway_storage::Operation = ::gateway_storage::Operation::new(
            "begin",
            ::gateway_storage::OperationKind::Control,
            false,
        );
        #[inline]
        async fn run(
            &self,
            on: &'on B,
        ) -> ::gateway_storage::Result<<B as Everything>::Transaction> {
            <B as Everything>::begin(on).await
        }
    }
    struct MoveCall {
        r#type: u8,
    }
    impl<'on, B: Everything> ::gateway_storage::Call<&'on B> for MoveCall {
        type Output = ();
        const OPERATION: ::gateway_storage::Operation = ::gateway_storage::Operation::new(
            "move",
            ::gateway_storage::OperationKind::Write,
            false,
        );
        #[inline]
        async fn run(&self, on: &'on B) -> ::gateway_storage::Result<()> {
            <B as Everything>::r#move(on, ::core::clone::Clone::clone(&self.r#type))
                .await
        }
    }
    #[deny(clippy::missing_trait_methods)]
    impl<L: ::gateway_storage::Layer, B: Everything> Everything
    for ::gateway_storage::Layered<L, B> {
        type Transaction = LayeredTransaction<L, <B as Everything>::Transaction>;
        fn set_limit(&mut self, limit: usize) {
            <B as Everything>::set_limit(self.inner_mut(), limit)
        }
        fn set_name(&mut self, name: String) {
            ::gateway_storage::Layer::set_name(
                self.layer_mut(),
                ::core::clone::Clone::clone(&name),
            );
            <B as Everything>::set_name(self.inner_mut(), name)
        }
        #[inline]
        async fn describe(&self) -> ::gateway_storage::Result<Text> {
            let call = DescribeCall {};
            let (layer, inner) = (self.layer(), self.inner());
            let mut output = ::gateway_storage::Layer::around(layer, inner, call).await?;
            ::gateway_storage::Layer::complete(layer, &mut output);
            ::core::result::Result::Ok(output)
        }
        #[inline]
        async fn get(
            &self,
            key: &Key,
            layer: Option<&'static str>,
            inner: Cow<'_, [u8]>,
            call: fn(&str) -> bool,
        ) -> ::gateway_storage::Result<Vec<u8>> {
            let call = GetCall { key, layer, inner, call };
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::Layer::around(layer, inner, call).await
        }
        #[inline]
        async fn set_many(
            &self,
            items: &[(Key, Value)],
        ) -> ::gateway_storage::Result<BatchReport> {
            let call = SetManyCall { items };
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::Layer::around(layer, inner, call).await
        }
        #[inline]
        async fn begin(&self) -> ::gateway_storage::Result<Self::Transaction> {
            let call = BeginCall {};
            let (layer, inner) = (self.layer(), self.inner());
            ::core::result::Result::Ok(
                LayeredTransaction::new(
                    ::core::clone::Clone::clone(layer),
                    ::gateway_storage::Layer::around(layer, inner, call).await?,
                ),
            )
        }
        fn r#yield(&self, prefix: &str) -> impl Stream<Item = Result<Record>> + Send {
            let items = <B as Everything>::r#yield(self.inner(), prefix);
            ::gateway_storage::Layer::around_stream(
                self.layer(),
                ::gateway_storage::Operation::new(
                    "yield",
                    ::gateway_storage::OperationKind::Read,
                    true,
                ),
                items,
            )
        }
        #[inline]
        async fn r#move(&self, r#type: u8) -> ::gateway_storage::Result<()> {
            let call = MoveCall { r#type };
            let (layer, inner) = (self.layer(), self.inner());
            ::gateway_storage::Layer::around(layer, inner, call).await
        }
    }
};
